"""The names of adapters: keys of a file to modules and back, one file per dialect."""
