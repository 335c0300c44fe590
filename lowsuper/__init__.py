"""A supervisor for other people's daemons: reads uWSGI's attach-daemon files, without their races."""
