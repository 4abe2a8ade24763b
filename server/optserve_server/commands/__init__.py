"""The commands that need the server's packages, one file each; what is heavy is imported when a command runs."""
