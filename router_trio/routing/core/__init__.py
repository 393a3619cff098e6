"""Routes from core subscriptions."""
