# Nothing to set.
