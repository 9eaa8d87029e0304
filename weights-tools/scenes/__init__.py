"""The demo world: world.py says what a scene is, draw.py draws it, language.py speaks about it."""
