"""Recipes that come with das3, and what recipes of older versions become."""
