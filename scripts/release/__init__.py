"""What is done before a release: checks, other hosts, the compatibility page."""
