"""What works on a machine and what does not: look (facts), judge (diagnosis), show (text)."""
