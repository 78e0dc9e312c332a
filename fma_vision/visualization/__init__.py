"""Pictures and measures of what attention looks at."""
