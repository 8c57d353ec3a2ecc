"""What the blocking and the asyncio client share: how a request is built, how an answer is read, retry and wait
arithmetic, server-sent events, progress output. Nothing here uses the network or sleeps.
"""
