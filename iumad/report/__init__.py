"""Tables, figures, words and explorers of the pages; nothing here needs torch."""
