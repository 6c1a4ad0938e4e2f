"""`python -m autobatch lint`: where a lazy value would be misread."""
