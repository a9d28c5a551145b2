"""Makes root disks with Nova's image backend, as nova-compute does when an
instance is spawned, in one process that stays. Its argument is the
configuration, as JSON of {group: {option: value}}; each line of standard input
asks for one disk:

    {"type": T, "uuid": U, "base": B, "size": BYTES, "location": URL or null}

T is qcow2, raw, lvm or rbd, and B the name of the base below _base, where it is
unless a location says that Glance has the image in the same Ceph cluster. What
Glance would answer is answered here. The answer is a line, "ok" or an error.
"""

import json
import sys
import traceback

import nova.conf
import nova.privsep
from nova import context, exception, objects
from nova.virt.libvirt import imagebackend

CONF = nova.conf.CONF


class Glance:
    """Says where the one image lies that is asked for."""

    location = None

    def get(self, _context, image, **_):
        where = [{"url": self.location}] if self.location else []
        return {"id": image, "disk_format": "raw", "locations": where}


def make(backends, glance, ask):
    glance.location = ask["location"]
    instance = objects.Instance(uuid=ask["uuid"], ephemeral_key_uuid=None)
    ctxt = context.get_admin_context()
    backend = backends.by_name(instance, "disk", ask["type"])

    def fetch(context, target, image_id):
        # nova.virt.libvirt.driver, _create_and_inject_local_root
        if not backend.SUPPORTS_CLONE:
            raise exception.ImageNotFound(image_id=target)
        backend.clone(context, image_id)

    backend.cache(
        fetch_func=fetch, context=ctxt, filename=ask["base"],
        size=ask["size"], image_id=ask["base"])


def main():
    CONF([], project="nova", default_config_files=[])
    for group, options in json.loads(sys.argv[1]).items():
        for name, value in options.items():
            CONF.set_override(name, value, None if group == "DEFAULT" else group)
    nova.privsep.sys_admin_pctxt.set_client_mode(False)  # this process is root
    objects.register_all()
    backends, glance = imagebackend.Backend(False), Glance()
    imagebackend.IMAGE_API = glance
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            make(backends, glance, json.loads(line))
            answer = "ok"
        except Exception:
            answer = json.dumps(traceback.format_exc())
        print(answer, flush=True)


if __name__ == "__main__":
    main()
