"""The viewer: a page in the browser, and a server that other programs can ask for masks."""
