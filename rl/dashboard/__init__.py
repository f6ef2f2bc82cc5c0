"""The dashboard: a web page over run folders. It reads them and writes nothing."""
