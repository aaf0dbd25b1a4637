"""Sends a message as a user: smtplib_login.py PORT starttls|implicit CA MECHANISM USER PASSWORD."""
import smtplib
import ssl
import sys

port, how, authority, mechanism, user, password = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
if how == "implicit":
    client = smtplib.SMTP_SSL("127.0.0.1", int(port), "client.test", context=context, timeout=30)
else:
    client = smtplib.SMTP("127.0.0.1", int(port), "client.test", timeout=30)
    client.starttls(context=context)
with client:
    client.ehlo()
    client.user, client.password = user, password
    # By name, or it would take the one that it likes best.
    client.auth(mechanism, getattr(client, "auth_" + mechanism.lower()))
    message = "From: alice@example.com\r\nSubject: hello\r\n\r\nhello\r\n"
    assert client.sendmail(user, "user@box.test", message) == {}
