"""What records amount to, as figures, sentences, tables and the page. Reads nothing but the records."""
