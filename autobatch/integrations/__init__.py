"""One small module a framework; each imports its framework, and nothing else imports them."""
