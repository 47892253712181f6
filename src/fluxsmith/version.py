"""The version of the package, also written into every output."""

VERSION = "0.1.0"
