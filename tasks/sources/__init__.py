"""Where networks come from: what others published, and what is fitted or trained here."""
