"""Who is in the cache: what is kept of each user, what proves it, and who leaves for whom."""
