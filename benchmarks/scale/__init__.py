"""What a fleet needs: predicted and measured, a million sessions, and a simulated large cluster."""
