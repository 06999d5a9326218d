"""Release tasks: checks, test runs on other host versions, the compatibility page."""
