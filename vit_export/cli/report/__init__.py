"""Results as text for people, as JSON for programs, and as pictures."""
