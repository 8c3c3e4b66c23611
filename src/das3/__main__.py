"""`python -m das3`."""

from das3.cli import main

raise SystemExit(main())
