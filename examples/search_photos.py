"""Search a photo library by words or by an image: captions and the tower's vectors, in one SQLite file.

    python examples/search_photos.py index photos library.db --model apple/FastVLM-0.5B
    python examples/search_photos.py words library.db "red star"
    python examples/search_photos.py image library.db photo.jpg

Indexing goes on where it stopped: images that are there are left alone, changed ones are done again, and those that are
gone are forgotten. Words are found by SQLite's FTS5, in any of their forms in English; an image by the vision tower's
pooled vectors, which are near where there is much the same to say.
"""

import argparse
import sqlite3
import sys
from pathlib import Path

import numpy as np

from mlx_fastvlm import batch_generate, load, load_image  # before mlx, so that OpenBLAS is found

import mlx.core as mx  # isort: skip
from mlx_fastvlm.data.folders import find_images

AT_A_TIME = 16
FOUND = 5
SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS photos (
    id INTEGER PRIMARY KEY, path TEXT UNIQUE, changed INTEGER, caption TEXT, vector BLOB
);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(caption, content=photos, content_rowid=id, tokenize='porter');
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON photos BEGIN
    INSERT INTO words(rowid, caption) VALUES (new.id, new.caption);
END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON photos BEGIN
    INSERT INTO words(words, rowid, caption) VALUES ('delete', old.id, old.caption);
END;
"""


def set_up(database: sqlite3.Connection, model: str, prompt: str):
    """Tables, and what they are made with, which stays."""
    database.executescript(SCHEMA)
    for name, value in (("model", model), ("prompt", prompt)):
        database.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (name, value))
        (before,) = database.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        if before != value:
            raise SystemExit(f"this library was made with the {name} {before!r}; index into another file")


def vector(model, processor, image) -> bytes:
    """(channels,), float32, of length 1."""
    pooled = np.array(model.vision_tower(processor.preprocess(image)).pooler_output.astype(mx.float32))[0]
    return (pooled / np.linalg.norm(pooled)).astype(np.float32).tobytes()


def index(args: argparse.Namespace, database: sqlite3.Connection):
    set_up(database, args.model, args.prompt)
    there = {str(path): path.stat().st_mtime_ns for path in find_images(args.folder.resolve())}
    known = dict(database.execute("SELECT path, changed FROM photos"))
    below = f"{args.folder.resolve()}/"
    with database:
        old = [(path,) for path in known if path.startswith(below) and known[path] != there.get(path)]
        database.executemany("DELETE FROM photos WHERE path = ?", old)
    new = [path for path, changed in there.items() if known.get(path) != changed]
    print(f"{len(there) - len(new)} images are there already, {len(new)} to do")
    model, processor = load(args.model) if new else (None, None)
    for start in range(0, len(new), AT_A_TIME):
        images = {}
        for path in new[start : start + AT_A_TIME]:
            try:
                images[path] = load_image(path)
            except (ValueError, OSError) as error:
                print(f"left out: {error}", file=sys.stderr)
        prompts = [args.prompt] * len(images)
        captions = batch_generate(model, processor, prompts, [*images.values()], max_tokens=args.max_tokens)
        rows = [
            (path, there[path], caption, vector(model, processor, image))
            for (path, image), caption in zip(images.items(), captions)
        ]
        with database:
            database.executemany("INSERT INTO photos (path, changed, caption, vector) VALUES (?, ?, ?, ?)", rows)
        print(f"{min(start + AT_A_TIME, len(new))} of {len(new)}")


def by_words(database: sqlite3.Connection, words: str) -> list[tuple[str, str]]:
    """Paths and captions that have all the words, the best first."""
    quoted = " ".join('"{}"'.format(word.replace('"', '""')) for word in words.split())
    query = """
        SELECT path, photos.caption FROM words JOIN photos ON photos.id = words.rowid
        WHERE words MATCH ? ORDER BY rank LIMIT ?
    """
    return database.execute(query, (quoted, FOUND)).fetchall()


def by_image(database: sqlite3.Connection, path: str) -> list[tuple[str, str]]:
    """Paths and captions of the images that are most alike."""
    (name,) = database.execute("SELECT value FROM settings WHERE name = 'model'").fetchone()
    model, processor = load(name)
    rows = database.execute("SELECT path, caption, vector FROM photos").fetchall()
    vectors = np.stack([np.frombuffer(blob, np.float32) for *_, blob in rows])
    query = np.frombuffer(vector(model, processor, load_image(path)), np.float32)
    mean = vectors.mean(axis=0)  # what all images have in common says nothing about any of them
    vectors, query = vectors - mean, query - mean
    likeness = vectors @ query / np.maximum(np.linalg.norm(vectors, axis=1) * np.linalg.norm(query), 1e-12)
    return [rows[i][:2] for i in np.argsort(-likeness)[:FOUND]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    indexing = commands.add_parser("index", help="caption a folder's images")
    indexing.add_argument("folder", type=Path)
    indexing.add_argument("library", type=Path)
    indexing.add_argument("--model", default="demo")
    indexing.add_argument("--prompt", default="Describe the image.")
    indexing.add_argument("--max-tokens", type=int, default=100)
    for name, what in (("words", "words that captions must contain"), ("image", "an image to find similar ones to")):
        searching = commands.add_parser(name)
        searching.add_argument("library", type=Path)
        searching.add_argument("wanted", help=what)
    args = parser.parse_args()

    if args.command != "index" and not args.library.is_file():
        raise SystemExit(f"there is no {args.library}; index a folder first")
    database = sqlite3.connect(args.library)
    try:
        if args.command == "index":
            index(args, database)
        else:
            found = by_words(database, args.wanted) if args.command == "words" else by_image(database, args.wanted)
            for path, caption in found:
                print(f"{path}: {caption}")
    finally:
        database.close()


if __name__ == "__main__":
    main()
