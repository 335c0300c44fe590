"""A supervisor for other people's daemons that reads uWSGI's attach-daemon files."""
