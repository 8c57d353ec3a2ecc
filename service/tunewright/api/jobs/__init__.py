"""What the routes of every kind of job share."""
