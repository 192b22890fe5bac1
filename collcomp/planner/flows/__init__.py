"""Long-lived flows of several jobs: placed on planes, uplinks and spines (C4P), and told to real systems."""
