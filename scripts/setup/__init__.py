"""Set-up of the prerequisites: the Python environment, the host, a browser."""
