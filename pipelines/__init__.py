"""Beam pipelines that build a WebText-style corpus: links, pages, documents, annotations, corpus, shards."""
