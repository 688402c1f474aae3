"""The machine code of NVIDIA's kernels, as cuobjdump lists it: by kernel, and what a thread executes of a loop."""

import re

BRANCH = re.compile(r"\bBRA (?:`\()?(?:\S+, )?0x([0-9a-f]+)")


def kernels(listing: str) -> dict[tuple[str, str], str]:
    """The listing of each kernel by its architecture and mangled name."""
    header, *functions = listing.split("Function : ")
    found = {}
    for function in functions:
        if archs := re.findall(r"\barch = (sm_\w+)", header):
            arch = archs[-1]
        name, _, body = function.partition("\n")
        found[arch, name.strip()] = header = body
    return found


def executed(listing: str, instruction: str, times: int) -> int:
    """How many instructions a thread executes once around the loop that has the instruction so many times in a row: the fewest
    of all ways around that has it so often and copies as much to shared memory as any of those does."""
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", listing, re.MULTILINE)
    places = {int(address, 16): i for i, (address, _) in enumerate(lines)}
    code = [text for _, text in lines]
    jumps = {i: places[int(found[1], 16)] for i, text in enumerate(code) if (found := BRANCH.search(text))}
    wanted = [i for i, text in enumerate(code) if instruction in text]
    end, head = min((i, to) for i, to in jumps.items() if to < wanted[0] and wanted[-1] < i)
    ways: list[tuple[int, int]] = []  # copies, negative, and instructions

    def walk(i: int, way: list[int]) -> None:
        while i <= end:
            way = [*way, i]
            if i == end:
                if sum(instruction in code[at] for at in way) == times:
                    ways.append((-sum("LDGSTS" in code[at] for at in way), len(way)))
                return
            target = jumps.get(i, 0)
            if i in jumps and not code[i].startswith("@"):
                if target <= i:
                    return
                i = target
                continue
            if target > i:
                walk(target, way)
            i += 1

    walk(head, [])
    return min(ways)[1]
