"""Who may call the server, and how connections are encrypted. SECURITY.md has the threat model."""
