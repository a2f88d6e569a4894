"""The demo: an archive that it makes, the whole job on it, and a page that shows the result."""
