"""The asyncio interface: one engine, one thread that drives it, any number of coroutines."""

from engine.aio.answers import Answers as Answers
from engine.aio.async_engine import AsyncEngine as AsyncEngine
