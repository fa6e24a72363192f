"""What a run left on disk, shown. Reads files; knows no training code."""
