"""Shares that are estimated from rows which belong together, and their intervals."""

import math

import numpy as np

Z = 1.96  # of a 95% interval


def share(hits, totals):
    """Hits and totals of each cluster (a picture's drawings, a row's visits) -> what a share and its interval need.

    `design`: by how much the clustering widens the variance of the share (Kish's design effect). Where there are no hits,
    or nothing else, it cannot be seen: then a cluster counts as one draw.
    """
    hits, totals = np.asarray(hits, float), np.asarray(totals, float)
    hits, totals = hits[totals > 0], totals[totals > 0]
    clusters, total = len(totals), float(totals.sum())
    if clusters == 0:
        return {"hits": 0.0, "total": 0.0, "clusters": 0, "design": 1.0}
    p = hits.sum() / total
    design = total / clusters
    if 0 < p < 1 and clusters > 1:
        variance = clusters / (clusters - 1) * float(((hits - p * totals) ** 2).sum()) / total ** 2
        design = max(1.0, variance / (p * (1 - p) / total))
    return {"hits": float(hits.sum()), "total": total, "clusters": clusters, "design": round(design, 4)}


def value(part):
    return part["hits"] / part["total"] if part and part["total"] else None


def pooled(parts):
    """Shares of several runs as one; runs count as independent."""
    parts = [part for part in parts if part and part["total"]]
    if not parts:
        return None
    total = sum(part["total"] for part in parts)
    return {"hits": sum(part["hits"] for part in parts), "total": total, "clusters": sum(part["clusters"] for part in parts),
            "design": sum(part["design"] * part["total"] for part in parts) / total}


def interval(part):
    """Wilson's 95% interval (Wilson, 1927) with the effective number of draws; None without any."""
    p = value(part)
    if p is None:
        return None
    n = part["total"] / part["design"]
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return max(0.0, centre - half), min(1.0, centre + half)
