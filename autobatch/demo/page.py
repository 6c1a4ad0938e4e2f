"""The shop's front page as HTML. It does not know whether a value has arrived already."""

from __future__ import annotations

from html import escape
from pathlib import Path

from autobatch.demo import WAYS
from autobatch.demo.front import DAY, Card, Front

REQUESTS_A_MINUTE = 10_000

_STYLE = Path(__file__).with_name("style.css").read_text()


def document(title: str, body: str) -> str:
    """Return a whole HTML page."""
    links = "".join(f'<a href="{path}">{escape(name)}</a>' for path, name in WAYS.items())
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
<nav><a href="/">the picture</a>{links}</nav>
<main>{body}</main>
"""


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def render(front: Front) -> str:
    """Return the shop's front page."""
    if front.requests > REQUESTS_A_MINUTE:
        return document("Slow down", "<p>Too many requests. Come back in a minute.</p>")
    categories = "".join(f"<li>{escape(name)}</li>" for name in sorted(front.categories))
    basket = "".join(
        f"<li>{escape(name)} <b>{count}</b></li>" for name, count in sorted(front.basket.items())
    )
    bestsellers = "".join(
        f"<li>{escape(name)} <b>{sold:.0f}</b></li>" for name, sold in front.bestsellers
    )
    seen = "".join(f"<li>{escape(name)}</li>" for name in front.recently_seen)
    return document(
        "Leaf & Kettle",
        f"""
<header>
<h1>Leaf &amp; Kettle</h1>
<p>Good day, {escape(front.session["name"])}. {escape(front.notice)}</p>
</header>
<ul class="categories">{categories}</ul>
<div class="shelf">{"".join(map(_card, front.cards))}</div>
<div class="lists">
<section><h2>Your basket</h2><ul>{basket}</ul>
<p>kept for {round(front.basket_seconds / DAY)} days</p></section>
<section><h2>Sold this week</h2><ul>{bestsellers}</ul></section>
<section><h2>Seen lately</h2><ul>{seen}</ul></section>
</div>
<footer>{plural(front.visitors, "visitor")} today; we deliver to {escape(front.session["city"])}
</footer>
""",
    )


def _card(card: Card) -> str:
    tea = card.details
    stock = int(card.stock)
    heart = "♥" if card.liked else "♡"
    return f"""
<article>
<div class="cup" style="background: {escape(tea["colour"])}"></div>
<h2>{escape(tea["name"])}</h2>
<p class="taste">{escape(tea["origin"])} · {escape(tea["taste"])}</p>
<p><strong>{int(tea["cents"]) / 100:.2f} €</strong>
{f"{stock} in stock" if stock else "sold out"}</p>
<p>★ {card.rating:.1f}, number {card.rank + 1} · {heart} {card.likes}</p>
<blockquote>{escape(card.latest_review)}</blockquote>
<p class="small">{plural(card.reviews, "review")} · {plural(card.views, "view")} today</p>
</article>"""
