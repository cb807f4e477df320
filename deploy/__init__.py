"""Where processes live: `local` runs everything in one supervised tree; other folders describe other places."""
