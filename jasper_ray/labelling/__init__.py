"""Label shards with the teachers' vectors, in one pool of actors per teacher, through a cache."""
