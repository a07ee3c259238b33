"""Models in use: sessions that outlive the process, conversations, documents, a server."""
