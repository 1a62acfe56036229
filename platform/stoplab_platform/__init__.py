"""The lower floor of stoplab: specs, job life, store, runners and tracking. No torch here."""
