"""Images, labels and the samples that stages train on."""
