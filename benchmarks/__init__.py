"""Our parts against their peers, as ratios measured side by side in one run. Never a test."""
