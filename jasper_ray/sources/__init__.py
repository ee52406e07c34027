"""Sources of texts and of image–caption pairs: settings, files, rows, hashing."""
