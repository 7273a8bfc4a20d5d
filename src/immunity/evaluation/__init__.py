"""The protocol: what is run, what is written down, what it amounts to, and the page that shows it."""
