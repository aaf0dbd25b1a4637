"""Reads a failure notice as a mail program would: read_notice.py FILE RECIPIENT STATUS.

Fails unless FILE is a multipart/report (RFC 6522, RFC 3464) which says that RECIPIENT failed with
a status that begins with STATUS.
"""
import email
import email.policy
import sys

file, recipient, status = sys.argv[1:]
with open(file, "rb") as opened:
    message = email.message_from_binary_file(opened, policy=email.policy.default)
assert not message.defects, message.defects
assert message["Return-Path"] == "<>", message["Return-Path"]
assert message.get_content_type() == "multipart/report", message.get_content_type()
assert message.get_param("report-type") == "delivery-status"
assert message["Auto-Submitted"].startswith("auto-"), message["Auto-Submitted"]
assert message["Date"].datetime and message["Message-ID"] and message["From"] and message["To"]
text, report, original = message.iter_parts()
assert text.get_content_type() == "text/plain" and recipient in text.get_content()
assert report.get_content_type() == "message/delivery-status"
blocks = report.get_payload()
assert blocks[0]["Reporting-MTA"].startswith("dns;"), blocks[0].items()
of_recipient = [block for block in blocks[1:] if block["Final-Recipient"] == f"rfc822;{recipient}"
                or block["Final-Recipient"] == f"rfc822; {recipient}"]
assert len(of_recipient) == 1, [block.items() for block in blocks]
fields = of_recipient[0]
assert fields["Action"] == "failed", fields.items()
assert fields["Status"].startswith(status), fields.items()
assert fields["Diagnostic-Code"].startswith("smtp;"), fields.items()
assert original.get_content_type() in ("message/rfc822", "text/rfc822-headers")
