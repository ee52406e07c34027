"""What runs on Ray Data: preparing a corpus, labelling it, embedding it."""
