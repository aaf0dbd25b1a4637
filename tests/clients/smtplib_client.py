"""Sends mail with Python's smtplib: smtplib_client.py HOST PORT FILE.

FILE is an ASCII message with CRLF newlines; the other messages are made here.  Each goes to a
mailbox of its own, whose name says what was sent.
"""
import smtplib
import socket
import sys
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8

host, port, file = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sender = "sender@client.test"
with open(file, "rb") as opened:
    plain = opened.read()


def connect():
    client = smtplib.SMTP(host, port, local_hostname="client.test", timeout=20)
    code, _ = client.ehlo()
    assert code == 250
    for wanted in ("pipelining", "8bitmime", "smtputf8", "enhancedstatuscodes", "chunking", "size", "dsn"):
        assert client.has_extn(wanted), wanted
    return client


with connect() as client:
    # One session, several messages.
    for number in range(3):
        assert client.sendmail(sender, "plain@box.test", plain) == {}
    # 8-bit text in UTF-8 and in Latin-1.
    eight = plain + "Grüße, 8 bits\r\n".encode() + "Grüße\r\n".encode("latin-1")
    assert client.sendmail(sender, "eight@box.test", eight, ["BODY=8BITMIME"]) == {}
    # Addresses and a header that are not ASCII.
    message = EmailMessage(policy=SMTPUTF8)
    message["From"], message["To"], message["Subject"] = "jörg@büro.test", "用户@box.test", "δοκιμή"
    message.set_content("Text: привет\n", cte="8bit")
    octets = message.as_bytes()
    refused = client.sendmail("jörg@büro.test", "用户@box.test", octets, ["SMTPUTF8", "BODY=8BITMIME"])
    assert refused == {}
    # Without SMTPUTF8 the same address is refused.
    client.mail(sender)
    client.send("RCPT TO:<用户@box.test>\r\n".encode())
    assert client.getreply()[0] == 553
    client.rset()
    # A recipient that is refused is told by its code; the others get the message.
    refused = client.sendmail(sender, ["plain@box.test", "nobody@closed.test"], plain)
    assert list(refused) == ["nobody@closed.test"] and refused["nobody@closed.test"][0] == 550, refused
    # DSN parameters.
    client.sendmail(sender, "dsn@box.test", plain, ["RET=HDRS", "ENVID=abc+2Bdef"],
                    ["NOTIFY=FAILURE,DELAY", "ORCPT=rfc822;dsn@box.test"])
    # send_message builds the envelope from the header.
    built = EmailMessage(policy=SMTP)
    built["From"], built["To"], built["Subject"] = sender, "built@box.test", "attached"
    built.set_content("See below.\n")
    built.add_attachment(bytes(range(256)) * 400, maintype="application", subtype="octet-stream",
                         filename="all.bin")
    assert client.send_message(built) == {}

# Everything at once: two transactions in one packet, replies read at the end.
with socket.create_connection((host, port), 20) as raw:
    lines = raw.makefile("rb")
    assert lines.readline().startswith(b"220 ")
    raw.sendall(b"EHLO client.test\r\n")
    while (line := lines.readline())[3:4] == b"-":
        pass
    one = (b"MAIL FROM:<sender@client.test>\r\nRCPT TO:<raw@box.test>\r\n"
           b"BDAT %d LAST\r\n%b" % (len(plain), plain))
    raw.sendall(one + b"RSET\r\n" + one + b"QUIT\r\n")
    codes = [lines.readline()[:3] for _ in range(8)]
    assert codes == [b"250", b"250", b"250", b"250", b"250", b"250", b"250", b"221"], codes
    assert lines.readline() == b""
