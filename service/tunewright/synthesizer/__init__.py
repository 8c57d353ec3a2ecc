"""The process of a synthesis: a teacher that is served here makes training rows of the rows of a file."""
