"""Knowledge served to a ranker: live answers over an offline fallback, logged as read."""

from pylum.serving.knowledge_cache import KnowledgeCache, Served
from pylum.serving.read_log import read_log
from pylum.serving.stores import RedisStore, SqliteStore, Store

__all__ = ["KnowledgeCache", "RedisStore", "Served", "SqliteStore", "Store", "read_log"]
