"""The spaces and presets that come with hksd: data, no code; README.md explains every key."""
