"""What runs on Ray Data: preparing corpora, labelling them, embedding them."""
