"""Getting a benchmark's files: only what its questions ask about, resumable, checked, and never half under its name.

sources of the tasks --plan--> what is missing, from where, how many bytes
    --places--> a mirror, a server that gives ranges, a local file        `http`, `places`
    --zips--> members of a zip by its directory, without the rest of it
    --download--> files under their names, each checked before            `download`
    --pack--> one archive of everything, to carry to where no network is   `pack`
"""
